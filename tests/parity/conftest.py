"""The scripts that write the numbers need TRL, and the tests that read them do not."""

collect_ignore = ["trl_numbers.py", "ppo_numbers.py"]
