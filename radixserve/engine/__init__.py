"""The engine process: its loop, the step, the scheduler and its sequences, waiting for tiers."""
