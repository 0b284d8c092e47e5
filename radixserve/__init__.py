"""radixserve: an inference server that never computes a shared prefix twice."""

__version__ = "0.1.0"
