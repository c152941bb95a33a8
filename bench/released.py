"""The training step of the authors' released code (github.com/tuffr5/CAR-GAN, read at commit 8d2990d), in our words: what `cargan`'s step is compared with in speed.

It updates D first, goes back through the generators twice (for the classification loss, then for the others), keeps every graph until the end, and
writes each attention matrix down, in NCHW. Spectrograms are RGB pictures. The scrambled layout of its attention is kept: it costs nothing, and this is
about cost alone. Only C differs: it is in evaluation mode, as theirs is where its file of weights exists."""
import torch
import torch.nn.functional as F
from torch import nn

from cargan.residue import CARGANConfig

SIGMA = 0.02  # of the first weights


class Attention(nn.Module):
    "Keys and values pooled; the output is `x + o`."
    def __init__(self, channels: int):
        super().__init__()
        self.query, self.key, self.value = (nn.Conv2d(channels, c, 1) for c in (max(1, channels // 4), max(1, channels // 4), channels))

    def forward(self, x):
        q, k, v = self.query(x).flatten(2), F.max_pool2d(self.key(x), 2).flatten(2), F.max_pool2d(self.value(x), 2)
        return x + (torch.bmm(q.mT, k).softmax(-1) @ v.view(len(x), k.shape[2], -1)).view_as(x)


def level(base: int, i: int, n: int, inner: nn.Module | None, c_in: int | None = None) -> nn.Module:
    "Level `i` of a U-Net of `n`, around the levels below it."
    wide = lambda j: base * min(2 ** j, 8)
    outer, inside = wide(i - 1) if i else 3, wide(i)
    down = nn.Conv2d(c_in or outer, inside, 4, 2, 1, bias=False)
    up = nn.ConvTranspose2d(inside * (2 if inner else 1), outer, 4, 2, 1, bias=not i)
    if not i: return nn.Sequential(down, inner, nn.ReLU(True), up, nn.Tanh())
    body = [nn.LeakyReLU(0.2, True), down] + ([nn.BatchNorm2d(inside), inner] if inner else []) + [nn.ReLU(True), up, nn.BatchNorm2d(outer)]
    return Skip(*body, *[nn.Dropout(0.5)] * (4 <= i < n - 1), *[Attention(outer)] * (i in (1, 2)))


class Skip(nn.Sequential):
    "What came in, beside what comes out."
    def forward(self, x): return torch.cat([x, super().forward(x)], 1)


def generator(cfg: CARGANConfig, c_in: int) -> nn.Module:
    n, net = cfg.size.bit_length() - 1, None
    for i in reversed(range(n)): net = level(cfg.base, i, n, net, None if i else c_in)
    return net


def discriminator(cfg: CARGANConfig, c_in: int) -> nn.Module:
    b, act = cfg.d_base, lambda: nn.LeakyReLU(0.2, True)
    block = lambda i, o, stride, *after: [nn.Conv2d(i, o, 4, stride, 1, bias=False), nn.BatchNorm2d(o), *after, act()]
    return nn.Sequential(nn.Conv2d(c_in, b, 4, 2, 1), act(), *block(b, 2 * b, 2, Attention(2 * b)), *block(2 * b, 4 * b, 2, Attention(4 * b)),
                         *block(4 * b, 8 * b, 1), nn.Conv2d(8 * b, 1, 4, 1, 1), nn.Tanh())


class Released:
    "G1, G2, D, frozen C and two optimisers, as `optimize_parameters` of the released code uses them."
    def __init__(self, cfg: CARGANConfig, C: nn.Module, lr: float = 2e-4):
        self.C, k = C.requires_grad_(False).eval(), cfg.n_classes
        self.G1, self.G2, self.D = generator(cfg, 3 + k), generator(cfg, 6 + k), discriminator(cfg, 6 + k)
        for net in (self.G1, self.G2, self.D):
            for m in net.modules():
                if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)): nn.init.normal_(m.weight, 0., SIGMA)
        adam = lambda *nets: torch.optim.Adam([q for net in nets for q in net.parameters()], lr=lr, betas=(0.5, 0.999))
        self.opt_G, self.opt_D, self.k = adam(self.G1, self.G2), adam(self.D), k

    def step(self, batch: dict):
        mel, image, label, bce = batch["mel"].expand(-1, 3, -1, -1), batch["image"], batch["label"], F.binary_cross_entropy_with_logits
        tile = lambda v, *maps: torch.cat([*maps, v[:, :, None, None].repeat(1, 1, *image.shape[2:])], 1)
        score = lambda x, target: bce(x, torch.full_like(x, target))
        L_a = F.one_hot(label, self.k).float()
        coarse = self.G1(tile(L_a, mel)); guess = self.C(coarse).softmax(1)
        fine = self.G2(tile(L_a - guess, coarse, mel))

        self.D.requires_grad_(True); self.opt_D.zero_grad()
        judge = lambda x: self.D(tile(L_a - guess, mel, x).detach())
        loss_D = 0.5 * (score(judge(coarse), 0.) + score(judge(fine), 0.) + score(self.D(tile(L_a - guess, mel, image)), 1.))
        loss_D.backward(retain_graph=True); self.opt_D.step()

        self.D.requires_grad_(False); self.opt_G.zero_grad()
        loss_C = 0.5 * (F.cross_entropy(guess, label) + F.cross_entropy(self.C(fine).softmax(1), label))
        loss_C.backward(retain_graph=True)
        loss_G = sum(score(self.D(tile(L_a, mel, x)), 1.) + 100 * F.l1_loss(x, image) for x in (coarse, fine))
        loss_G.backward(retain_graph=True); self.opt_G.step()
        return loss_G, loss_D
