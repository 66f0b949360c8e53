"""Times the forms of ``kernels.conv3d`` on this machine, as ratios to the first form of a case.

    python -m benchmarks.conv3d [--repeats 5] [--channels 64] [--json]

Each form is timed forward and with both gradients. All run in one process, so ratios are meaningful
even on a busy machine or a throttled laptop. The least of the repeats counts.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp

from vidlatent.kernels.conv3d import DENSE_FORMS, DEPTHWISE_FORMS, conv3d


def cases(channels):
    """name -> input shape (time padding included), kernel, outputs, strides, space pad, forms."""
    dense, depthwise = ("auto", *DENSE_FORMS), ("auto", *DEPTHWISE_FORMS)
    return {
        "3x3x3": ((1, 11, 64, 64, channels), (3, 3, 3), channels, (1, 1, 1), 1, dense),
        "3x3x3, stride 2": ((1, 11, 64, 64, channels), (3, 3, 3), channels, (2, 2, 2), 1, dense),
        "3x3x3 from RGB": ((1, 11, 64, 64, 3), (3, 3, 3), channels, (1, 1, 1), 1, dense),
        "3x3x3 depthwise": ((2, 5, 16, 16, 512), (3, 3, 3), 512, (1, 1, 1), 1, depthwise),
        "1x5x5 depthwise": ((2, 3, 16, 16, 192), (1, 5, 5), 192, (1, 1, 1), 2, depthwise),
    }


def measure(case, form, repeats):
    """Seconds forward and forward plus both gradients."""
    shape, taps, features, strides, pad, forms = case
    groups = features if forms[1:] == DEPTHWISE_FORMS else 1
    x = jax.random.normal(jax.random.key(0), shape)
    kernel = jax.random.normal(jax.random.key(1), (*taps, shape[-1] // groups, features))
    padding = ((0, 0), (pad, pad), (pad, pad))

    def forward(x, kernel):
        return conv3d(x, kernel, strides, padding, groups, implementation=form)

    def both(x, kernel):
        return jax.grad(lambda *a: jnp.sum(jnp.square(forward(*a))), (0, 1))(x, kernel)

    return [least(jax.jit(f), (x, kernel), repeats) for f in (forward, both)]


def least(run, arguments, repeats):
    jax.block_until_ready(run(*arguments))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        times.append(time.perf_counter() - start)
    return min(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    options = parser.parse_args()
    rows = []
    for name, case in cases(options.channels).items():
        reference = None
        for form in case[-1]:
            forward, both = measure(case, form, options.repeats)
            reference = reference or (forward, both)
            rows.append(
                {
                    "case": name,
                    "form": form,
                    "forward_ms": round(forward * 1e3, 2),
                    "both_ms": round(both * 1e3, 2),
                    "forward_ratio": round(forward / reference[0], 2),
                    "both_ratio": round(both / reference[1], 2),
                }
            )
    if options.json:
        print(json.dumps({"device": jax.devices()[0].device_kind, "rows": rows}, indent=1))
        return
    print(f"{'case':18} {'form':8} {'forward':>18} {'with gradients':>18}")
    for r in rows:
        print(
            f"{r['case']:18} {r['form']:8} {r['forward_ms']:9.1f} ms {r['forward_ratio']:5.2f}x"
            f" {r['both_ms']:9.1f} ms {r['both_ratio']:5.2f}x"
        )


if __name__ == "__main__":
    main()
