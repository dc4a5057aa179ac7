"""The scripts that write the numbers need TRL or crowd-kit, and the tests that read them do not."""

collect_ignore = ["trl_numbers.py", "ppo_numbers.py", "crowd_kit_numbers.py"]
