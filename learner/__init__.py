"""The learner: objectives, the model under FSDP2, checkpoints, published weights, evaluation.

May import broker; inside: ranks, data < batch < model; objective, model < train; then weights, evaluation < service.
Never imports actor or verifier.
"""
