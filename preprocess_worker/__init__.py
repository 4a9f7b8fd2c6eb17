"""From pictures to tensors: decode, turn upright, letterbox; a child process for each picture at a time."""
