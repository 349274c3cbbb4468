"""I/O limits of volumes: block-device throttles of a pod's cgroup on the loop device of a limit class."""
