"""Our network in other people's training loops: Lightning, accelerate, the HF Trainer train as PyTorch does."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import deepcait
from deepcait.errors import DeepcaitWarning

STEPS, BATCH, K = 4, 3, 5


def network() -> nn.Module:
    torch.manual_seed(0)
    model = deepcait.create_model("cait_nano_32", num_classes=K, depth=2)
    for name, parameter in model.named_parameters():  # at their initial value the blocks hardly show
        if "gamma" in name:
            nn.init.uniform_(parameter, 0.5, 1.0)
    return model


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(STEPS * BATCH, 3, 32, 32, generator=generator)
    return TensorDataset(images, torch.arange(STEPS * BATCH) % K)


def loss_of(model: nn.Module, batch) -> torch.Tensor:
    images, labels = batch
    return nn.functional.cross_entropy(model(images), labels)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    """Weights after an epoch of plain PyTorch."""
    model = network().train()
    optimizer = optimizer_of(model)
    for batch in DataLoader(data(), BATCH):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    assert not torch.equal(model.head.weight, network().head.weight)
    return model.state_dict()


def assert_equal(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_lightning(expected, tmp_path):
    lightning = pytest.importorskip("pytorch_lightning")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = network()

        def training_step(self, batch, index):
            return loss_of(self.model, batch)

        def configure_optimizers(self):
            return optimizer_of(self.model)

    module = Module()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", devices=1, default_root_dir=str(tmp_path), **quiet)
    trainer.fit(module, DataLoader(data(), BATCH))
    assert_equal(module.model.state_dict(), expected)
    # Its checkpoint is a MODEL.
    trainer.save_checkpoint(tmp_path / "lightning.ckpt")
    (tmp_path / "lightning.ckpt").rename(tmp_path / "lightning.pth")
    with pytest.warns(DeepcaitWarning, match=r"removed the prefix 'model\.'"):
        loaded = deepcait.load(tmp_path / "lightning.pth", device="cpu").model
    assert_equal(loaded.state_dict(), expected)


def test_accelerate(expected, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model = network().train()
    model, optimizer, loader = accelerator.prepare(model, optimizer_of(model), DataLoader(data(), BATCH))
    for batch in loader:
        optimizer.zero_grad()
        accelerator.backward(loss_of(model, batch))
        optimizer.step()
    assert_equal(accelerator.unwrap_model(model).state_dict(), expected)
    accelerator.save_model(model, tmp_path)
    assert_equal(deepcait.load(tmp_path / "model.safetensors", device="cpu").model.state_dict(), expected)


class Rows(Dataset):
    """Examples as the HF Trainer takes them."""

    def __len__(self) -> int:
        return len(data())

    def __getitem__(self, index: int) -> dict:
        image, label = data()[index]
        return {"images": image, "labels": label}


class WithLoss(nn.Module):
    """What the HF Trainer expects of a network that is none of transformers'."""

    def __init__(self) -> None:
        super().__init__()
        self.model = network()

    def forward(self, images, labels=None):
        logits = self.model(images)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_the_trainer_of_transformers(expected, tmp_path):
    transformers = pytest.importorskip("transformers")
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=1,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=5,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
    )
    module = WithLoss()
    optimizer = optimizer_of(module)
    trainer = transformers.Trainer(
        model=module,
        args=arguments,
        train_dataset=Rows(),
        eval_dataset=Rows(),
        optimizers=(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)),
        compute_metrics=lambda found: {"top1": float((found.predictions.argmax(-1) == found.label_ids).mean())},
    )
    trainer.train()
    assert_equal(module.model.state_dict(), expected)
    measured = trainer.evaluate()
    ours = deepcait.evaluate(module.model, DataLoader(data(), 5))
    assert measured["eval_top1"] == pytest.approx(ours.top1)
    assert measured["eval_loss"] == pytest.approx(ours.loss, rel=1e-3)
