"""LPIPS written out in torch after its paper, apart from our tables of layers."""

import torch
from torch.nn import functional as F

# Channels of VGG16's convolutions; "M" is a max-pool. The five marked layers are compared.
VGG = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)
VGG_COMPARED = (1, 3, 6, 9, 12)
# (stride, padding, pool of 3 with stride 2 in front) of AlexNet's convolutions, all compared.
ALEX = ((4, 2, False), (1, 2, True), (1, 1, True), (1, 1, False), (1, 1, False))
SHIFT = torch.tensor([-0.030, -0.088, -0.188]).reshape(1, 3, 1, 1)
SCALE = torch.tensor([0.458, 0.448, 0.450]).reshape(1, 3, 1, 1)


def vgg_features(x, kernels, biases):
    features, number = [], 0
    for layer in VGG:
        if layer == "M":
            x = F.max_pool2d(x, 2, 2)
            continue
        x = F.relu(F.conv2d(x, kernels[number], biases[number], padding=1))
        if number in VGG_COMPARED:
            features.append(x)
        number += 1
    return features


def alex_features(x, kernels, biases):
    features = []
    for number, (stride, padding, pool) in enumerate(ALEX):
        x = F.max_pool2d(x, 3, 2) if pool else x
        x = F.relu(F.conv2d(x, kernels[number], biases[number], stride, padding))
        features.append(x)
    return features


def distance(net, a, b, kernels, biases, weights):
    """Distances (n,) of images (n, 3, h, w) in [-1, 1]; kernels in torch's order."""
    trunk = {"vgg": vgg_features, "alex": alex_features}[net]
    pairs = zip(*(trunk((x - SHIFT) / SCALE, kernels, biases) for x in (a, b)), strict=True)
    total = torch.zeros(a.shape[0])
    for (x, y), weight in zip(pairs, weights, strict=True):
        x, y = (f / (f.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for f in (x, y))
        total += ((x - y) ** 2 * weight.reshape(1, -1, 1, 1)).sum(1).mean((1, 2))
    return total
