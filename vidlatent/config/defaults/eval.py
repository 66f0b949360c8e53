"""``config.eval``: scores, their networks, and what reports show."""

from ml_collections import ConfigDict


def get_eval() -> ConfigDict:
    score = ConfigDict()
    score.every = 1000  # steps between evaluations while training; 0: only at the end
    score.pictures = 4  # clips shown in contact sheets and side-by-side videos
    score.preservation = True  # score information preservation, pixels in [-1, 1]
    # Scores of --mode=eval beside PSNR and SSIM: lpips_vgg, lpips_alex, fvd_i3d, fvd_videomae,
    # is_c3d, psnr_reducio, ssim_reducio, lpips_reducio; see vidlatent/metrics
    score.metrics = ()
    score.training_metrics = ()  # the same while training, where each costs time
    score.is_splits = 10  # parts of an inception score; with fewer than 2 clips a part, one part
    score.random_networks = False  # use small random networks instead, to try things out
    # Of --mode=eval: score all clips of the data as a paper did, and show its own figures:
    # fsae_table2 | promag_table1 | promag_table1_360 | ivvae_s1 | reducio_main; empty: off
    score.protocol = ""
    score.leave_out = ()  # scores of the protocol to leave out, such as ("fvd_videomae",)
    score.clips = 0  # clips the protocol scores, spread over the data; 0: all
    # Of --mode=reconstruct: PSNR, SSIM, seams, a side-by-side video and a contact sheet. At
    # 1280x720 this takes longer than small codecs do
    score.compare = True
    # Of --mode=eval: draw how much weight each layer of a generator with layer memory gives to
    # each earlier state
    score.layer_memory = False
    # Source clips from whose latents --mode=eval estimates the intrinsic dimension; 0: none
    score.gride_clips = 0
    return score
