"""Speed of saedex on this machine beside floors and peers, as ratios within one run."""
