"""The endpoints by which operators see the cache and steer it."""
