"""Where the time of a run of the tests goes: what is recorded (``plugin.py``, ``site/``) and how it is shown."""
