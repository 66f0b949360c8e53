"""``config.eval``: scores, their networks, and what reports show."""

from ml_collections import ConfigDict


def get_eval() -> ConfigDict:
    score = ConfigDict()
    score.every = 1000  # steps between evaluations while training; 0: only at the end
    score.pictures = 4  # clips shown in contact sheets and side-by-side videos
    score.preservation = True  # score information preservation, pixels in [-1, 1]
    # Scores of --mode=eval beside PSNR and SSIM (of sets of videos: fvd_i3d, fvd_videomae, is_c3d
    # unless named): lpips_vgg, lpips_alex, fvd_i3d, fvd_videomae,
    # is_c3d, psnr_reducio, ssim_reducio, lpips_reducio; see vidlatent/metrics
    score.metrics = ()
    score.training_metrics = ()  # the same while training, where each costs time
    score.is_splits = 10  # parts of an inception score; with fewer than 2 clips a part, one part
    score.random_networks = False  # use small random networks instead, to try things out
    # Of --mode=eval: score all clips of the data as a paper did, and show its own figures:
    # fsae_table2 | promag_table1 | promag_table1_360 | promag_table3_2x | promag_table3_4x |
    # ivvae_s1 | ivvae_256 | reducio_main | reducio_512 | fsvideo_table1; empty: off.
    # Of generated videos against the clips of the data:
    # ivvae_ucf101 | ivvae_sky | ivvae_faces | reducio_ucf101
    score.protocol = ""
    # Folder of generated videos to compare with the clips of the data, by the protocol or, without
    # one, as long and large as the last bucket; empty: a generator draws what its protocol takes
    score.samples = ""
    # Folder of the frames that an interpolator makes between decoded ones, <clip>/<frame>.png, for
    # the protocols promag_table3_2x and promag_table3_4x; they write the decoded frames there
    score.interpolated = ""
    # Rewards (docs/rewards.md) to score single videos with, such as ("motion",), in place of all
    # other scores: the videos of config.eval.samples, or several folders with commas between them,
    # or without one the clips of the data
    score.rewards = ()
    score.frames = 0  # first frames of each video that rewards judge; 0: all
    score.batch = 1  # clips that each device looks at at a time, where folders are scored
    score.fewer_clips = False  # compare sets of fewer clips than the protocol takes, with a warning
    score.leave_out = ()  # scores of the protocol to leave out, such as ("fvd_videomae",)
    score.clips = 0  # clips scored (of each set), spread over the data; 0: what the protocol says
    # Of --mode=reconstruct: PSNR, SSIM, seams, a side-by-side video and a contact sheet. At
    # 1280x720 this takes longer than small codecs do
    score.compare = True
    # Of --mode=eval: draw how much weight each layer of a generator with layer memory gives to
    # each earlier state
    score.layer_memory = False
    # Source clips from whose latents --mode=eval estimates the intrinsic dimension; 0: none
    score.gride_clips = 0
    return score
