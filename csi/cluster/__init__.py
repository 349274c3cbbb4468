"""The Kubernetes API server: where it is, calls, watches, and the lease that one replica holds. Over urllib3: `import kubernetes` costs 19 MB."""
