"""Transformers and other mixers of tokens: torch's own modules, and the ways in which people write them by hand."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.zoo.architecture import Architecture, floats, several, tokens


class EncoderClassifier(nn.Module):
    """nn.TransformerEncoder over words with learned positions."""

    def __init__(self, *, norm_first: bool = False, activation: str = "relu"):
        super().__init__()
        self.embedding, self.positions = nn.Embedding(30, 16), nn.Parameter(torch.zeros(1, 8, 16))
        layer = nn.TransformerEncoderLayer(
            16, 4, 32, dropout=0.0, batch_first=True, norm_first=norm_first, activation=activation
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(16, 3)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embedding(words) + self.positions[:, : words.shape[1]]
        return self.out(self.encoder(x, src_key_padding_mask=words == 0).mean(dim=1))


class EncoderDecoder(nn.Module):
    """nn.Transformer with a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(20, 16), nn.Embedding(20, 16)
        self.transformer = nn.Transformer(16, 4, 1, 1, 24, dropout=0.0, batch_first=True)
        self.out = nn.Linear(16, 20)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        length = target.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool, device=target.device).triu(1)
        return self.out(self.transformer(self.source(source), self.target(target), tgt_mask=mask, tgt_is_causal=True))


class CrossAttention(nn.Module):
    """nn.MultiheadAttention with keys and values of other widths, time first, and its weights as second output."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, kdim=10, vdim=12)
        self.key, self.value = nn.Linear(6, 10), nn.Linear(6, 12)
        self.query, self.out = nn.Linear(5, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x, memory = x.transpose(0, 1), memory.transpose(0, 1)
        y, _ = self.attention(self.query(x), self.key(memory), self.value(memory), need_weights=False)
        return self.out(y.mean(0))


class VisionBlock(nn.Module):
    """As timm writes it: one layer for queries, keys and values, reshaped to (3, heads, width of a head)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = ((q * self.head_dim**-0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        x = x + self.proj(y.transpose(1, 2).reshape(b, n, self.num_heads * self.head_dim))
        return x + self.mlp(self.norm2(x))


class FixedWidthBlock(VisionBlock):
    """The same with the model's width reshaped back by number: heads cannot go unless the code changes."""

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, 4, c // 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(y.transpose(1, 2).reshape(b, n, c))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Dosovitskiy et al. 2020."""

    def __init__(self, block: type[VisionBlock] = VisionBlock):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.token, self.positions = nn.Parameter(torch.zeros(1, 1, 16)), nn.Parameter(torch.zeros(1, 10, 16))
        self.blocks = nn.Sequential(block(16, 4), block(16, 4))
        self.norm, self.out = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.out(self.norm(self.blocks(x))[:, 0])


class GenerativeBlock(nn.Module):
    """As nanoGPT writes it: c_attn split in three by n_embd, views by n_head, a causal buffer."""

    def __init__(self, width: int, heads: int, length: int):
        super().__init__()
        self.n_head, self.n_embd = heads, width
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.c_fc, self.c_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.register_buffer("bias", torch.ones(length, length).tril().view(1, 1, length, length))

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = self.c_attn(self.ln_1(x)).split(self.n_embd, dim=2)
        q, k, v = (part.view(b, t, self.n_head, self.n_embd // self.n_head).transpose(1, 2) for part in (q, k, v))
        weights = (q @ k.transpose(-2, -1)) * (1.0 / k.size(-1) ** 0.5)
        weights = weights.masked_fill(self.bias[:, :, :t, :t] == 0, float("-inf")).softmax(dim=-1)
        y = (weights @ v).transpose(1, 2).contiguous().view(b, t, self.n_embd)
        x = x + self.c_proj(y)
        return x + self.c_out(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class NanoGPT(nn.Module):
    """A language model whose output layer is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(30, 16), nn.Embedding(12, 16)
        self.blocks = nn.ModuleList(GenerativeBlock(16, 4, 12) for _ in range(2))
        self.ln_f, self.lm_head = nn.LayerNorm(16), nn.Linear(16, 30, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, words: Tensor) -> Tensor:
        x = self.wte(words) + self.wpe(torch.arange(words.shape[1], device=words.device))
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.ln_f(x))


class RootMeanSquare(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class GroupedQueryBlock(nn.Module):
    """Llama (Touvron et al. 2023): rotary positions, keys and values shared by groups of heads, a gated MLP."""

    def __init__(self, width: int, heads: int, shared: int):
        super().__init__()
        self.heads, self.shared, self.head_dim = heads, shared, width // heads
        self.norm1, self.norm2 = RootMeanSquare(width), RootMeanSquare(width)
        self.wq, self.wo = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.wk, self.wv = (nn.Linear(width, shared * self.head_dim, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(width, 2 * width, bias=False) for _ in range(2))
        self.down = nn.Linear(2 * width, width, bias=False)

    def rotate(self, x: Tensor) -> Tensor:
        half = self.head_dim // 2
        angles = torch.arange(x.shape[2])[:, None] / 100 ** (torch.arange(half) / half)
        first, second = x[..., :half], x[..., half:]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        y = self.norm1(x)
        q = self.rotate(self.wq(y).view(b, t, self.heads, self.head_dim).transpose(1, 2))
        k = self.rotate(self.wk(y).view(b, t, self.shared, self.head_dim).transpose(1, 2))
        v = self.wv(y).view(b, t, self.shared, self.head_dim).transpose(1, 2)
        k, v = (part.repeat_interleave(self.heads // self.shared, dim=1) for part in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.wo(y.transpose(1, 2).reshape(b, t, self.heads * self.head_dim))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class GroupedQueryModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 32)
        self.blocks = nn.Sequential(GroupedQueryBlock(32, 8, 4), GroupedQueryBlock(32, 8, 4))
        self.norm, self.out = RootMeanSquare(32), nn.Linear(32, 30, bias=False)

    def forward(self, words: Tensor) -> Tensor:
        return self.out(self.norm(self.blocks(self.embedding(words))))


class LinearAttention(nn.Module):
    """Katharopoulos et al. 2020, by einsum: keys meet values before queries do."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.enter, self.norm = nn.Linear(6, 16), nn.LayerNorm(16)
        self.query, self.key, self.value, self.leave = (nn.Linear(16, 16) for _ in range(4))
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.enter(x))
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)) for part in (self.query, self.key, self.value))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        context = torch.einsum("bnhd,bnhe->bhde", k, v)
        scale = 1 / torch.einsum("bnhd,bhd->bnh", q, k.sum(dim=1))
        y = torch.einsum("bnhd,bhde,bnh->bnhe", q, context, scale)
        return self.out((x + self.leave(y.flatten(2))).mean(dim=1))


class Latents(nn.Module):
    """Perceiver (Jaegle et al. 2021): a learned array queries the input, then itself."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.zeros(3, 16))
        self.enter = nn.Linear(6, 16)
        self.cross = nn.MultiheadAttention(16, 2, batch_first=True)
        self.own = nn.MultiheadAttention(16, 4, batch_first=True, bias=False)
        self.mlp = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))
        self.out = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        memory = self.enter(x)
        y = self.latents.expand(x.shape[0], -1, -1)
        y = y + self.cross(y, memory, memory)[0]
        y = y + self.own(y, y, y)[0]
        return self.out((y + self.mlp(y)).mean(dim=1))


class Mixer(nn.Module):
    """MLP-Mixer (Tolstikhin et al. 2021): layers across tokens, then across channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.across = nn.Sequential(nn.Linear(9, 12), nn.GELU(), nn.Linear(12, 9))
        self.channels = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.out = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.across(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return self.out((x + self.channels(self.norm2(x))).mean(dim=1))


class SpatialGate(nn.Module):
    """gMLP (Liu et al. 2021): half of the channels gate the other half, after a layer across tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 32), nn.Linear(16, 12)
        self.across = nn.Conv1d(7, 7, 1)
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        kept, gate = F.gelu(self.up(x)).chunk(2, dim=-1)
        return self.out((x + self.down(kept * self.across(gate))).mean(dim=1))


class Shared(nn.Module):
    """Universal Transformer (Dehghani et al. 2018): one block, several times."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.block, self.out = nn.Linear(6, 16), VisionBlock(16, 4), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for _ in range(3):
            x = self.block(x)
        return self.out(x.mean(dim=1))


class Recommender(nn.Module):
    """SASRec (Kang & McAuley 2018): scores of items by the dot product with their embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(25, 16, padding_idx=0)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.norm, self.forward1, self.forward2 = nn.LayerNorm(16), nn.Conv1d(16, 24, 1), nn.Conv1d(24, 16, 1)

    def forward(self, words: Tensor) -> Tensor:
        x = self.items(words)
        mask = torch.full((words.shape[1], words.shape[1]), float("-inf"), dtype=x.dtype).triu(1)
        x = self.norm(x + self.attention(x, x, x, attn_mask=mask, need_weights=False)[0])
        x = x + self.forward2(F.relu(self.forward1(x.transpose(1, 2)))).transpose(1, 2)
        return x[:, -1] @ self.items.weight.T


ARCHITECTURES = (
    Architecture(name="nn.TransformerEncoder", removes=0.4, build=EncoderClassifier, sample=tokens(30, 7)),
    Architecture(
        name="nn.TransformerEncoder, norm first",
        removes=0.4,
        build=lambda: EncoderClassifier(norm_first=True, activation="gelu"),
        sample=tokens(30, 7),
    ),
    Architecture(
        name="nn.Transformer", removes=0.35, build=EncoderDecoder, sample=several(tokens(20, 7), tokens(20, 5))
    ),
    Architecture(
        name="nn.MultiheadAttention, other keys", build=CrossAttention, sample=several(floats(4, 5), floats(7, 6))
    ),
    Architecture(name="ViT, by hand", removes=0.35, build=VisionTransformer, sample=floats(3, 12, 12)),
    Architecture(
        name="ViT, fixed widths",
        removes=0.15,
        build=lambda: VisionTransformer(FixedWidthBlock),
        sample=floats(3, 12, 12),
    ),
    Architecture(name="nanoGPT, tied", removes=0.4, build=NanoGPT, sample=tokens(30, 7)),
    Architecture(name="Llama, by hand", removes=0.4, build=GroupedQueryModel, sample=tokens(30, 7)),
    Architecture(name="Linear attention", removes=0.4, build=LinearAttention, sample=floats(7, 6)),
    Architecture(name="Perceiver", removes=0.4, build=Latents, sample=floats(7, 6)),
    Architecture(name="MLP-Mixer", removes=0.25, build=Mixer, sample=floats(3, 12, 12)),
    Architecture(name="gMLP", removes=0.4, build=SpatialGate, sample=floats(7, 6)),
    Architecture(name="Universal Transformer", removes=0.4, build=Shared, sample=floats(7, 6)),
    Architecture(name="SASRec", removes=0.35, build=Recommender, sample=tokens(25, 7)),
)
