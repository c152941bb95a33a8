"""A training step as the paper reads, with no regard to speed: the oracle for `cargan.cascade`'s step, in numbers and in time.

Attention writes its matrix down, every use of a network is a forward pass of its own, every map is NCHW. The parameters have the names that
`cargan`'s networks give them, so that both can start from the same weights."""
import torch
import torch.nn.functional as F
from torch import nn

from cargan.losses import LossConfig
from cargan.residue import CARGANConfig


class Attention(nn.Module):
    "SAGAN's attention, or the released code's with its layout mended."
    def __init__(self, kind: str, channels: int):
        super().__init__()
        self.kind = kind
        conv = lambda i, o: nn.Conv2d(i, o, 1, bias=False)
        inner = max(1, channels // (8 if kind == "sagan" else 4))
        self.query, self.key, self.value = conv(channels, inner), conv(channels, inner), conv(channels, inner if kind == "sagan" else channels)
        if kind == "sagan": self.out, self.gamma = conv(inner, channels), nn.Parameter(torch.zeros(1))

    def forward(self, x):
        q, k, v = self.query(x), self.key(x), self.value(x)
        if self.kind == "released": k, v = F.max_pool2d(k, 2), F.max_pool2d(v, 2)
        q, k, v = (t.flatten(2) for t in (q, k, v))  # B x d x positions
        o = (v @ (q.mT @ k).softmax(-1).mT).unflatten(2, x.shape[2:])
        return self.gamma * self.out(o) + x if self.kind == "sagan" else x + o


def attention(kind: str, channels: int) -> list: return [Attention(kind, channels)] if kind != "none" else []


class Generator(nn.Module):
    "pix2pix's U-Net with attention on the inputs of its last two up-convolutions."
    def __init__(self, cfg: CARGANConfig, in_channels: int):
        super().__init__()
        n = cfg.size.bit_length() - 1
        wide = [cfg.base * min(2 ** i, 8) for i in range(n)]
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for i in range(n):
            norm = [nn.BatchNorm2d(wide[i])] if 0 < i < n - 1 else []
            self.downs.append(nn.Sequential(nn.Conv2d([in_channels, *wide][i], wide[i], 4, 2, 1, bias=not norm), *norm, nn.LeakyReLU(0.2)))
        for i in reversed(range(n)):
            c_in, c_out = wide[i] * (1 if i == n - 1 else 2), [3, *wide][i]
            norm = [nn.BatchNorm2d(c_out)] if i > 0 else []
            drop = [nn.Dropout(cfg.dropout)] if cfg.dropout and 4 <= i < n - 1 else []
            look = attention(cfg.attention, c_in) if i < 2 else []
            self.ups.append(nn.Sequential(nn.ReLU(), *look, nn.ConvTranspose2d(c_in, c_out, 4, 2, 1, bias=not norm), *norm, *drop))

    def forward(self, x):
        maps = []
        for down in self.downs: maps.append(x := down(x))
        x = self.ups[0](maps.pop())
        for up in self.ups[1:]: x = up(torch.cat([x, maps.pop()], 1))
        return torch.tanh(x)


class Discriminator(nn.Module):
    "The 70×70 PatchGAN with attention before its last two convolutions."
    def __init__(self, cfg: CARGANConfig):
        super().__init__()
        b = cfg.d_base
        def block(i, o, stride, *before): return nn.Sequential(*before, nn.Conv2d(i, o, 4, stride, 1, bias=False), nn.BatchNorm2d(o), nn.LeakyReLU(0.2))
        self.layers = nn.Sequential(
            nn.Sequential(nn.Conv2d(4, b, 4, 2, 1), nn.LeakyReLU(0.2)), block(b, 2 * b, 2), block(2 * b, 4 * b, 2),
            block(4 * b, 8 * b, 1, *attention(cfg.attention, 4 * b)), *attention(cfg.attention, 8 * b), nn.Conv2d(8 * b, 1, 4, 1, 1))

    def forward(self, mel, image): return self.layers(torch.cat([mel, image], 1))


class Reference:
    "G1, G2, D, frozen C and two optimisers; section III of the paper, line by line."
    def __init__(self, cfg: CARGANConfig, C: nn.Module, loss: LossConfig = LossConfig(), lr: float = 8e-4):
        self.cfg, self.loss, self.C = cfg, loss, C.requires_grad_(False).eval()
        self.G1, self.G2, self.D = Generator(cfg, 1 + cfg.n_classes), Generator(cfg, 3 + cfg.n_classes), Discriminator(cfg)
        adam = lambda params: torch.optim.Adam(params, lr=lr, betas=(0.9, 0.999), foreach=False)
        self.opt_G, self.opt_D = adam([*self.G1.parameters(), *self.G2.parameters()]), adam(self.D.parameters())

    def generate(self, mel, L_a):
        tile = lambda x, label: torch.cat([x, label[:, :, None, None].repeat(1, 1, *x.shape[2:])], 1)
        coarse = self.G1(tile(mel, L_a))
        L_r = L_a - self.C(coarse).softmax(-1)
        return coarse, self.G2(tile(coarse, L_r))

    def losses_G(self, batch: dict):  # eq. 6, and the two pictures
        mel, image, label = batch["mel"], batch["image"], batch["label"]
        pictures = self.generate(mel, F.one_hot(label, self.cfg.n_classes).float())
        real = lambda logits: F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
        L_C = sum(0.5 * F.cross_entropy(self.C(x), label) for x in pictures)
        L_cG = sum(real(self.D(mel, x)) for x in pictures)
        L_L1 = sum((x - image).abs().mean() for x in pictures)
        return self.loss.lambda_cls * L_C + self.loss.lambda_gan * L_cG + self.loss.lambda_l1 * L_L1, pictures

    def losses_D(self, batch: dict, pictures):  # eq. 3 to 5
        mel, image = batch["mel"], batch["image"]
        score = lambda logits, target: F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))
        return sum(score(self.D(mel, image), 1.) + score(self.D(mel, x.detach()), 0.) for x in pictures)

    def step(self, batch: dict):  # G first, then D
        loss_G, pictures = self.losses_G(batch)
        self.opt_G.zero_grad(); loss_G.backward(); self.opt_G.step()
        loss_D = self.losses_D(batch, pictures)
        self.opt_D.zero_grad(); loss_D.backward(); self.opt_D.step()
        return loss_G, loss_D
