"""A Debian guest with systemd and nothing but cgroup v2, under software emulation, and the tests that need
one."""
