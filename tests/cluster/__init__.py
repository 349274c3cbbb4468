"""A real Kubernetes on this machine, and the tests that need one (`make test-cluster`).

What runs: etcd, kube-apiserver (RBAC, an audit log), kube-controller-manager and kube-scheduler in one set of
namespaces; each node, that is a kubelet with containerd, runc and CNI, in a set of its own: processes,
mounts, network, host name, cgroups. A node has its own /var/lib, /var/log, /run and /sys/fs/cgroup, so that
the driver finds there what it finds on any node. All of it ends with the process that started it.

By hand, as root:

    make test-cluster ARGS="tests/cluster/test_nodes.py -v"     # sets up, then runs a part
    .venv/bin/python -m tests.cluster --nodes 2                 # a cluster with the images of this checkout, until Ctrl-C

The latter prints a KUBECONFIG, the folder of programs (kubectl, helm, ctr), and how to get into a node. From
pods, this machine is at the addresses `lab.outside`: an origin that listens there is read by pods, as
`Hub(addresses=lab.outside)`. There is no name service and no kube-proxy; the API server is where pods look
for it, other services are not.

In a test: `lab` (tests/cluster/conftest.py) is a cluster of one node that is shared by all tests;
`lab.kubectl` applies, waits, reads logs; `lab.nodes[0].root` is what the node has mounted;
`audit.calls(lab.plane.audit_log)` is who asked what. Two files run behind all others: test_rights.py judges
what the driver's programs asked for in all of them, test_upgrades.py replaces the driver. `running()`
(tests/cluster/lab.py) starts another.

Programs are built once by tests/setup/cluster/programs.sh, images by `driver_image.py` from
deploy/Dockerfile; both are kept in ${XDG_CACHE_HOME:-~/.cache}/datacache-csi/cluster, which can be removed at
any time.
"""  # noqa: E501
