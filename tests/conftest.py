"""What holds for the whole suite."""

from fa_utils.memory import keep_freed_memory

keep_freed_memory()
