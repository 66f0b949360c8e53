"""``config.networks``: weights files of the frozen pretrained networks."""

from ml_collections import ConfigDict


def get_networks() -> ConfigDict:
    """A weights file for each network of ``models.pretrained.NETWORKS``; several with commas.

    ``random`` or ``random:SEED`` stands for random weights, to try things out. The names ending in
    ``_tiny`` are small stand-ins, of which there are no weights but random ones.
    """
    networks = ConfigDict()
    networks.c3d_tiny = "random"
    networks.c3d_ucf101 = ""
    networks.clip_tiny = "random"
    networks.clip_vith14 = ""
    networks.clip_vith14_wan = ""
    networks.clip_vitl14 = ""
    networks.dinov2_tiny = "random"
    networks.dinov2_vitb14 = ""
    networks.dinov2_vitg14 = ""
    networks.dinov2_vitl14 = ""
    networks.dinov2_vits14 = ""
    networks.flan_t5_base = ""
    networks.flan_t5_large = ""
    networks.flan_t5_small = ""
    networks.flan_t5_xl = ""
    networks.i3d_kinetics400 = ""
    networks.i3d_tiny = "random"
    networks.lpips_alex = ""
    networks.lpips_tiny = "random"
    networks.lpips_vgg = ""
    networks.mps = ""
    networks.mps_tiny = "random"
    networks.sd_vae = ""
    networks.sd_vae_tiny = "random"
    networks.t5_tiny = "random"
    networks.t5_v10_base = ""
    networks.t5_v10_large = ""
    networks.t5_v10_small = ""
    networks.t5_v11_xxl = ""
    networks.umt5_tiny = "random"
    networks.umt5_xxl = ""
    networks.videoalign = ""
    networks.videoalign_tiny = "random"
    networks.videomae_g = ""
    networks.videomae_tiny = "random"
    return networks
