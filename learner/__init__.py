"""The learner: objectives, the model under FSDP2, checkpoints, published weights, evaluation.

May import broker; inside: difficulty < objective, evaluation; ranks, data < batch < model; objective, model < train;
then step_record < weights, metrics < service.
Never imports actor or verifier.
"""
