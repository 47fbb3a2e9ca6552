"""The scripts that the processes run are no tests, and one of them imports a library that imports Triton."""

collect_ignore = ["lightning_steps.py"]
