"""What ``tools/damage_run`` is made of: a run and its data, damages to their files, verbs that meet them, verdicts."""
