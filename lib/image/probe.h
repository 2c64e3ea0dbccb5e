/* SPDX-License-Identifier: MIT */
/* What a file is that is no VHDX image: what it begins and ends with. */
#ifndef VHDX_IMAGE_PROBE_H
#define VHDX_IMAGE_PROBE_H

struct storage;

/* As identifier_probe(), of which file and its length decide how much there is to see: an enum vhdx_file_kind, and in *what, a
 * static text, what a person would call it; or a negative errno. */
int image_probe(struct storage *file, const char **what);

#endif
