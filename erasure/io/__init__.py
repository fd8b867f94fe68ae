"""Files written whole, and tensors read one by one."""
