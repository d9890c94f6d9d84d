"""The learner: the α-DPG objective, the model under FSDP2, checkpoints, published weights, evaluation."""
