"""Traces and metrics for an OpenTelemetry collector. What is imported from outside this package
only when they are on: the packages are an optional extra.
"""
