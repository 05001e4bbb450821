from pathlib import Path

from huggingface_hub import ModelCard

from hf_multitask import MultiTaskTrainer


def test_model_card_tells_tasks_results_and_use(build_model, arguments, data, tokenizer, tmp_path):
    trainer = MultiTaskTrainer(
        build_model(),
        arguments(),
        train_dataset=data(),
        eval_dataset=data(8, 4, "validation"),
        processing_class=tokenizer,
    )
    trainer.train()
    metrics = trainer.evaluate()
    trainer.create_model_card(model_name="me/two-tasks", license="apache-2.0")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "apache-2.0"
    results = {(one.dataset_name, one.metric_type): one.metric_value for one in card.data.eval_results}
    assert results["sentiment", "accuracy"] == round(metrics["eval_sentiment_accuracy"], 4)
    assert results["ner", "f1"] == round(metrics["eval_ner_f1"], 4)
    for text in (
        "| ner | token-classification | `O`, `B-PER`",
        'model="me/two-tasks"',
        "Plan: 3 steps of 8 rows",
        "`learning_rate`: 0.001",
    ):
        assert text in card.content


def test_card_of_the_demo_has_valid_metadata():
    path = Path(__file__).parents[2] / "model_cards" / "sentiment-ner-minilm" / "README.md"
    card = ModelCard.load(path)
    assert {(one.dataset_name, one.metric_type) for one in card.data.eval_results} == {
        ("Sentiment Labelled Sentences", "accuracy"),
        ("Wikigold", "f1"),
    }
    for one in card.data.eval_results:  # the metadata and the table say the same
        assert f"**{one.metric_value:.3f}**" in card.content
