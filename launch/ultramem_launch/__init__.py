"""The ``ultramem`` command: plans, starts and watches runs."""
