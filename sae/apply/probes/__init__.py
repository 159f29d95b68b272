"""Probes of what a text is (true, false, neither; or any classes), which abstain where they do not know."""
