"""Fast and elsewhere: the folded model, the engines that run it, export with proof."""
