"""The migrations: expand, deploy, contract. Each works with the code before and after it."""
