import copy

import pytest
import torch
from torch import nn

from modbalance import Teacher


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        self.path = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 2))
        self.teacher = Teacher(self.path)

    def forward(self, x):
        return self.path(x), self.teacher(x)


@pytest.fixture
def student():
    return Student()


@pytest.fixture
def x():
    return torch.randn(16, 4)


def test_train_cannot_wake_it(student, x):
    asleep = student.eval().teacher(x)
    student.train()
    assert student.path.training
    assert not any(module.training for module in [student.teacher, *student.teacher.copy.modules()])
    assert torch.equal(student.teacher(x), asleep)
    assert torch.equal(student.teacher.train()(x), asleep)


def test_it_says_what_the_original_said(student, x):
    student.eval()
    own, taught = student(x)
    assert torch.equal(own, taught)
    assert own.requires_grad
    assert not taught.requires_grad


def test_it_is_in_neither_parameters_nor_state_dict(student):
    assert not list(student.teacher.parameters())
    assert not list(student.teacher.buffers())
    assert not student.teacher.state_dict()
    assert not any("teacher" in key for key in student.state_dict())
    assert all(not p.requires_grad for p in student.teacher.copy.parameters())
    assert len(student.teacher.copy.state_dict()) == len(student.path.state_dict())


def test_it_does_not_drift_while_the_original_learns(student, x):
    before = student.teacher(x)
    optimiser = torch.optim.SGD(student.parameters(), lr=0.5)
    for _ in range(3):
        own, taught = student(x)
        (own - taught).square().sum().backward()
        optimiser.step()
    assert torch.equal(student.teacher(x), before)
    student.eval()
    assert not torch.equal(student(x)[0], before)


def test_making_it_leaves_the_original_alone():
    path = nn.Sequential(nn.Linear(4, 2), nn.Dropout())
    Teacher(path)
    assert path.training
    assert all(p.requires_grad for p in path.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_it_follows_the_model_to_another_dtype(student, dtype, x):
    student.to(dtype)
    assert {p.dtype for p in student.teacher.copy.parameters()} == {dtype}
    assert student.teacher(x.to(dtype)).dtype == dtype


def test_it_follows_the_model_to_another_device(student):
    student.to("meta")
    assert {p.device.type for p in student.teacher.copy.parameters()} == {"meta"}


def test_a_deepcopy_has_a_teacher_of_its_own(student, x):
    twin = copy.deepcopy(student)
    before = twin.teacher(x)
    with torch.no_grad():
        for p in student.teacher.copy.parameters():
            p.zero_()
    assert torch.equal(twin.teacher(x), before)
    assert not torch.equal(student.teacher(x), before)


def test_a_checkpoint_of_its_copy_brings_it_back(student, x):
    other = Student()
    other.teacher.copy.load_state_dict(student.teacher.copy.state_dict())
    assert torch.equal(other.teacher(x), student.teacher(x))
