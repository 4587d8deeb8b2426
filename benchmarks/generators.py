"""Image-to-image networks of every kind that users bring, written from their papers; some have public weights.

Each is written the plain way, hard-coded sizes included, since that is what has to be traced.
"""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "AdaIN",
    "DnCNN",
    "Imdn",
    "Johnson",
    "ResnetGenerator",
    "SelfAttentionGenerator",
    "Spade",
    "ZeroDce",
    "of_modules",
]


class SameConv(nn.Module):
    """Convolution with TensorFlow's SAME padding and instance norm, no bias; keys `weight, in_weight, in_bias`."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c_out, c_in, kernel, kernel) / (c_in * kernel**2) ** 0.5)
        self.in_weight, self.in_bias = nn.Parameter(torch.ones(c_out)), nn.Parameter(torch.zeros(c_out))
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        reach = self.weight.shape[-1] - self.stride
        before, after = reach // 2, reach - reach // 2
        x = F.conv2d(F.pad(x, (before, after, before, after)), self.weight, stride=self.stride)
        return F.instance_norm(x, weight=self.in_weight, bias=self.in_bias, eps=1e-3)


class SameUp(SameConv):
    """Transposed convolution of stride 2 that keeps the first 2H × 2W positions, and instance norm."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__(c_in, c_out, 3, 2)
        self.weight = nn.Parameter(torch.randn(c_in, c_out, 3, 3) / (c_in * 9) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x = F.conv_transpose2d(x, self.weight, stride=2)[:, :, : 2 * height, : 2 * width]
        return F.instance_norm(x, weight=self.in_weight, bias=self.in_bias, eps=1e-3)


class JohnsonBlock(nn.Module):
    """x + IN(conv(relu(IN(conv(x)))))."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1, self.conv2 = SameConv(width, width, 3), SameConv(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))


class Johnson(nn.Module):
    """Style transfer (Johnson et al., ECCV 2016): RGB 0…255 to RGB; weights `johnson_*_fp16.pth`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = SameConv(3, 32, 9), SameConv(32, 64, 3, 2), SameConv(64, 128, 3, 2)
        for number in range(1, 6):
            self.add_module(f"res{number}", JohnsonBlock(128))
        self.up1, self.up2, self.out = SameUp(128, 64), SameUp(64, 32), SameConv(32, 3, 9)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.conv1, self.conv2, self.conv3):
            x = F.relu(layer(x))
        for number in range(1, 6):
            x = self.get_submodule(f"res{number}")(x)
        x = F.relu(self.up2(F.relu(self.up1(x))))
        return torch.tanh(self.out(x)) * 150 + 127.5


def of_modules(model: nn.Module) -> nn.Module:
    """A copy of a Johnson that is made of torch's own modules, for tools that know no others; it computes the same."""
    model = copy.deepcopy(model)
    for name, part in [each for each in model.named_modules() if isinstance(each[1], SameConv)]:
        up, kernel, stride = isinstance(part, SameUp), part.weight.shape[-1], part.stride
        c_in, c_out = part.weight.shape[:2] if up else part.weight.shape[1::-1]
        reach = 1 if up else kernel - stride
        pad = nn.ZeroPad2d((0, -reach, 0, -reach) if up else (reach // 2, reach - reach // 2) * 2)
        conv = (nn.ConvTranspose2d if up else nn.Conv2d)(c_in, c_out, kernel, stride, bias=False)
        norm = nn.InstanceNorm2d(c_out, eps=1e-3, affine=True)
        conv.weight, norm.weight, norm.bias = part.weight, part.in_weight, part.in_bias
        model.set_submodule(name, nn.Sequential(conv, pad, norm) if up else nn.Sequential(pad, conv, norm))
    return model


class ZeroDce(nn.Module):
    """Low-light enhancement by curves (Guo et al., CVPR 2020): RGB 0…1 to RGB; weights `ZeroDCE.pth`."""

    def __init__(self) -> None:
        super().__init__()
        ins, outs = (3, 32, 32, 32, 64, 64, 64), (32, 32, 32, 32, 32, 32, 24)
        for number, (c_in, c_out) in enumerate(zip(ins, outs, strict=True), 1):
            self.add_module(f"e_conv{number}", nn.Conv2d(c_in, c_out, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        layer = self.get_submodule
        one = F.relu(layer("e_conv1")(x))
        two = F.relu(layer("e_conv2")(one))
        three = F.relu(layer("e_conv3")(two))
        four = F.relu(layer("e_conv4")(three))
        five = F.relu(layer("e_conv5")(torch.cat([three, four], 1)))
        six = F.relu(layer("e_conv6")(torch.cat([two, five], 1)))
        curves = torch.tanh(layer("e_conv7")(torch.cat([one, six], 1)))
        for curve in torch.split(curves, 3, dim=1):
            x = x + curve * (x * x - x)
        return x


class DnCNN(nn.Module):
    """Denoiser (Zhang et al., TIP 2017): gray 0…1 minus the predicted noise; weights `DnCNN_gray25.pth`."""

    def __init__(self, depth: int = 17, width: int = 64):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, width, 3, 1, 1), nn.ReLU()]
        for _ in range(depth - 2):
            layers += [nn.Conv2d(width, width, 3, 1, 1), nn.ReLU()]
        self.model = nn.Sequential(*layers, nn.Conv2d(width, 1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x - self.model(x)


class ContrastAttention(nn.Module):
    """Channel attention on deviation plus mean."""

    def __init__(self, width: int):
        super().__init__()
        self.conv_du = nn.Sequential(nn.Conv2d(width, width // 16, 1), nn.ReLU(), nn.Conv2d(width // 16, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        deviation = (x - mean).pow(2).mean((2, 3), keepdim=True).sqrt()
        return x * torch.sigmoid(self.conv_du(deviation + mean))


class DistillationBlock(nn.Module):
    """Three splits of the channels into a quarter that is kept and a rest that goes on."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.kept, self.rest = width // 4, width - width // 4
        self.c1, self.c2, self.c3 = (nn.Conv2d(c, width, 3, 1, 1) for c in (width, self.rest, self.rest))
        self.c4, self.c5 = nn.Conv2d(self.rest, self.kept, 3, 1, 1), nn.Conv2d(4 * self.kept, width, 1)
        self.cca = ContrastAttention(width)

    def forward(self, x: Tensor) -> Tensor:
        kept, rest = [], x
        for conv in (self.c1, self.c2, self.c3):
            part, rest = torch.split(F.leaky_relu(conv(rest), 0.05), (self.kept, self.rest), dim=1)
            kept.append(part)
        return self.c5(self.cca(torch.cat([*kept, self.c4(rest)], 1))) + x


class Imdn(nn.Module):
    """×2 super-resolution (Hui et al., ACM MM 2019): RGB 0…1 to RGB; weights `IMDN_x2.pth`."""

    def __init__(self, width: int = 64, blocks: int = 6, scale: int = 2):
        super().__init__()
        self.blocks = blocks
        self.fea_conv = nn.Conv2d(3, width, 3, 1, 1)
        for number in range(1, blocks + 1):
            self.add_module(f"IMDB{number}", DistillationBlock(width))
        self.c = nn.Sequential(nn.Conv2d(blocks * width, width, 1), nn.LeakyReLU(0.05))
        self.LR_conv = nn.Conv2d(width, width, 3, 1, 1)
        self.upsampler = nn.Sequential(nn.Conv2d(width, 3 * scale**2, 3, 1, 1), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        first = x = self.fea_conv(x)
        found = []
        for number in range(1, self.blocks + 1):
            x = self.get_submodule(f"IMDB{number}")(x)
            found.append(x)
        return self.upsampler(self.LR_conv(self.c(torch.cat(found, 1))) + first)


class ReflectedBlock(nn.Module):
    """A CycleGAN residual block: reflection padding, no padding of the convolutions' own."""

    def __init__(self, width: int):
        super().__init__()
        conv = [nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3, bias=False), nn.InstanceNorm2d(width)]
        again = [nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3, bias=False), nn.InstanceNorm2d(width)]
        self.body = nn.Sequential(*conv, nn.ReLU(), *again)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class ResnetGenerator(nn.Module):
    """CycleGAN's generator (Zhu et al., ICCV 2017)."""

    def __init__(self, width: int = 64, blocks: int = 9):
        super().__init__()
        layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(3, width, 7), nn.InstanceNorm2d(width), nn.ReLU()]
        for c in (width, 2 * width):
            layers += [nn.Conv2d(c, 2 * c, 3, 2, 1), nn.InstanceNorm2d(2 * c), nn.ReLU()]
        layers += [ReflectedBlock(4 * width) for _ in range(blocks)]
        for c in (4 * width, 2 * width):
            layers += [nn.ConvTranspose2d(c, c // 2, 3, 2, 1, 1), nn.InstanceNorm2d(c // 2), nn.ReLU()]
        self.model = nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class SpadeNorm(nn.Module):
    """Normalise, then scale and shift by maps computed from the mask: x · (1 + γ) + β."""

    def __init__(self, width: int, labels: int, hidden: int = 64):
        super().__init__()
        self.norm = nn.InstanceNorm2d(width)
        self.shared = nn.Conv2d(labels, hidden, 3, 1, 1)
        self.gamma, self.beta = nn.Conv2d(hidden, width, 3, 1, 1), nn.Conv2d(hidden, width, 3, 1, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        hidden = F.relu(self.shared(F.interpolate(mask, size=x.shape[2:], mode="nearest")))
        return self.norm(x) * (1 + self.gamma(hidden)) + self.beta(hidden)


class SpadeBlock(nn.Module):
    """Two SPADE-normalised convolutions and a learnt shortcut."""

    def __init__(self, c_in: int, c_out: int, labels: int):
        super().__init__()
        middle = min(c_in, c_out)
        self.norm_0, self.conv_0 = SpadeNorm(c_in, labels), nn.Conv2d(c_in, middle, 3, 1, 1)
        self.norm_1, self.conv_1 = SpadeNorm(middle, labels), nn.Conv2d(middle, c_out, 3, 1, 1)
        self.norm_s, self.conv_s = SpadeNorm(c_in, labels), nn.Conv2d(c_in, c_out, 1, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.conv_0(F.leaky_relu(self.norm_0(x, mask), 0.2))
        y = self.conv_1(F.leaky_relu(self.norm_1(y, mask), 0.2))
        return self.conv_s(self.norm_s(x, mask)) + y


class Spade(nn.Module):
    """Mask → image (Park et al., CVPR 2019), four doublings."""

    def __init__(self, labels: int = 6, width: int = 32):
        super().__init__()
        widths = [16 * width, 8 * width, 4 * width, 2 * width, width]
        self.head = nn.Conv2d(labels, widths[0], 3, 1, 1)
        self.blocks = nn.ModuleList(SpadeBlock(a, b, labels) for a, b in pairwise(widths))
        self.image = nn.Conv2d(widths[-1], 3, 3, 1, 1)

    def forward(self, mask: Tensor) -> Tensor:
        x = self.head(F.interpolate(mask, scale_factor=1 / 16, mode="nearest"))
        for block in self.blocks:
            x = F.interpolate(block(x, mask), scale_factor=2.0, mode="nearest")
        return torch.tanh(self.image(F.leaky_relu(x, 0.2)))


class SelfAttention(nn.Module):
    """x + γ · attention over positions (Zhang et al., ICML 2019)."""

    def __init__(self, width: int):
        super().__init__()
        self.query, self.key = nn.Conv2d(width, width // 8, 1), nn.Conv2d(width, width // 8, 1)
        self.value, self.gamma = nn.Conv2d(width, width, 1), nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        query, key, value = (layer(x).flatten(2) for layer in (self.query, self.key, self.value))
        attention = torch.softmax(query.transpose(1, 2) @ key, dim=-1)
        return x + self.gamma * (value @ attention.transpose(1, 2)).view(batch, -1, height, width)


class SelfAttentionGenerator(nn.Module):
    """Noise map → image with attention in the middle: transposed convolutions and batch norm."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(16, 4 * width, 3, 1, 1), nn.BatchNorm2d(4 * width), nn.ReLU())
        self.up1 = nn.Sequential(
            nn.ConvTranspose2d(4 * width, 2 * width, 4, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU()
        )
        self.attention = SelfAttention(2 * width)
        self.up2 = nn.Sequential(nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.last = nn.Conv2d(width, 3, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.last(self.up2(self.attention(self.up1(self.first(x))))))


class AdaIN(nn.Module):
    """Style by adaptive instance norm (Huang & Belongie, ICCV 2017): two images in, one out."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Conv2d(3, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU()),
            nn.Conv2d(2 * width, 4 * width, 3, 2, 1),
        )
        self.decoder = nn.Sequential(
            *(nn.Conv2d(4 * width, 2 * width, 3, 1, 1), nn.ReLU(), nn.Upsample(scale_factor=2)),
            *(nn.Conv2d(2 * width, width, 3, 1, 1), nn.ReLU(), nn.Upsample(scale_factor=2)),
            nn.Conv2d(width, 3, 3, 1, 1),
        )

    def forward(self, content: Tensor, style: Tensor) -> Tensor:
        x, y = self.encoder(content), self.encoder(style)
        x = (x - x.mean((2, 3), keepdim=True)) / (x.std((2, 3), keepdim=True) + 1e-5)
        return self.decoder(x * y.std((2, 3), keepdim=True) + y.mean((2, 3), keepdim=True))
