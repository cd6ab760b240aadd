"""Who is asking, and what it used: containers, their CPU time, their load, the CPUs that they see."""
