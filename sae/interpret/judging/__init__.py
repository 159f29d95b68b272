"""A judge (a language model that reads prompts): the client to it, and explanations and scores that ask one."""
