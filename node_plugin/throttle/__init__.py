"""Limits on what pods read: block-device throttles on (the pod's cgroup, the loop device of the volume's limit class)."""
