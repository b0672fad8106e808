"""What the commands that search do: fill an index, answer queries, measure the threshold."""
