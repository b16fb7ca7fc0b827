// The smallest thing that makes a test: CHECK(condition), THROWS(expression, type, part of the message), and a summary.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

inline int n_checks = 0;

inline void check_failed(const char * file, int line, const std::string & what) {
    fprintf(stderr, "%s:%d: failed: %s\n", file, line, what.c_str());
    exit(1);
}

#define CHECK(condition)                                  \
    do {                                                  \
        ++n_checks;                                       \
        if (!(condition)) {                               \
            check_failed(__FILE__, __LINE__, #condition); \
        }                                                 \
    } while (0)

#define THROWS(expression, type, part)                                                                 \
    do {                                                                                               \
        ++n_checks;                                                                                    \
        try {                                                                                          \
            (void) (expression);                                                                       \
            check_failed(__FILE__, __LINE__, #expression " does not throw");                           \
        } catch (const type & e) {                                                                     \
            if (!strstr(e.what(), part)) {                                                             \
                check_failed(__FILE__, __LINE__,                                                       \
                             std::string(#expression " throws: ") + e.what() + "; expected: " + part); \
            }                                                                                          \
        }                                                                                              \
    } while (0)

inline int summary(const char * name) {
    printf("%s: %d checks passed\n", name, n_checks);
    return 0;
}
