"""Egress profiles: the operator's networks that fetches go through."""
