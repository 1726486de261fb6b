"""What is timed. One file a workload, and one YAML in ``conf/overhead/workload/`` names it."""
