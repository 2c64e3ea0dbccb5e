/* SPDX-License-Identifier: MIT */
/* Skipping a cmocka test so that the reason gets into the report. */
#ifndef VHDX_TESTS_SKIP_H
#define VHDX_TESTS_SKIP_H

/* End the running test as skipped, because of reason ("needs root").  Use it instead of cmocka's skip(), which has no
 * place for a reason. */
void skip_because(const char *reason);

#endif
