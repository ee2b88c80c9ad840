"""Jobs on Slurm: what is asked for, the script that is submitted, what its helper decides, what users ask about it."""
