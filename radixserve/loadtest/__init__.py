"""Replays traffic with shared prompts against any OpenAI-compatible URL and tells what happened.

Talks HTTP only and imports nothing of the server, so that the same numbers can be had from any
other one. From data to report, each step knowing only those before it: what is sent and when:
`session`, `table`, `prose`, `kinds`, `trace`, `load`, `workload`; sending it: `dialect`, `target`,
`client`, `record`, `replay`, `check`, `scrape`; telling it: `measures`, `results`, `compare`,
`report`, `progress`, `page`; as commands: `bench`, `finish`, `server`, `tour`, `options`, `cli`.

Use: `python -m radixserve.loadtest WORKLOAD --url URL`.
"""
