"""What the tests on real mounts share."""
