"""Jobs beside training and inference: conversion of weights, planning, benchmarks."""
