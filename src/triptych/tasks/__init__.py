"""Lightning modules of the stages that train, and the machinery that runs them."""
