"""Access to the Kubernetes API server: configuration, calls, watches, and leader election.

Built on urllib3, since `import kubernetes` costs 19 MB.
"""
