"""Matrix maths: arrays in, arrays out, stacks in front."""
