"""Replays traffic with shared prompts against any OpenAI-compatible URL and reports the results.

It uses HTTP only and imports nothing of the server, so that any other server can be measured in the
same way. The modules, each knowing only those before it:

    what is sent     session, table, prose, kinds, trace, load, workload
    sending          dialect, target, client, record, replay, check, scrape
    reporting        measures, results, compare, report, progress, page
    commands         bench, finish, server, tour, options, cli

Use: `python -m radixserve.loadtest WORKLOAD --url URL`.
"""
