/* Change hue, saturation and value of an image in one pass, without rounding to 8 bits between the steps.
 *
 * colour.py has the same operations in NumPy, with the same result to the bit. So that this holds on every processor,
 * the operations are float32, in this order, and must not be contracted or reordered; pyproject.toml has the compiler
 * options. The loops are written so that compilers can vectorise them.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <float.h>
#include <math.h>
#include <stdint.h>

#if FLT_EVAL_METHOD != 0 || defined(__FAST_MATH__)
#error "the result would depend on this compiler; colour.py is used instead"
#endif
#ifdef _MSC_VER
#pragma fp_contract(off)
#endif

#define BLOCK 256 /* pixels that are processed as planes */
#define LANES 32  /* a multiple of the number of pixels that one vector instruction processes */

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__)
#define FOR_EACH_CPU __attribute__((target_clones("avx2", "default")))
#else
#define FOR_EACH_CPU
#endif

typedef struct {
    float hue, saturation, value;
} Gains;

typedef uint8_t Planes[3][BLOCK];

static inline float least(float a, float b) { return a < b ? a : b; }
static inline float most(float a, float b) { return a > b ? a : b; }

/* Return a channel: `distance`, limited to 0..1, tells where it lies from the highest level to `span` below it. */
static inline uint8_t level(float high, float span, float distance)
{
    return (uint8_t)(int)(high - span * least(most(distance, 0), 1) + 0.5f);
}

/* Recolour the first `count` pixels, rounded up to whole LANES. Hues are in sixths of the circle: red 0, green 2. */
static inline void recolour_planes(Planes planes, int count, Gains gains)
{
    for (int i = 0; i < (count + LANES - 1) / LANES * LANES; i++) {
        float r = planes[0][i], g = planes[1][i], b = planes[2][i];
        float value = most(r, most(g, b)), chroma = value - least(r, least(g, b));
        float hue = value == r ? g - b : value == g ? b - r + 2 * chroma : r - g + 4 * chroma;
        hue = gains.hue * hue / most(chroma, 1);
        hue += hue < 0 ? 6 * gains.hue : 0;
        hue -= hue >= 6 ? 6 : 0;

        float high = least(gains.value * value, 255);
        float span = high * least(gains.saturation * chroma / most(value, 1), 1);
        planes[0][i] = level(high, span, 2 - fabsf(hue - 3));
        planes[1][i] = level(high, span, fabsf(hue - 2) - 1);
        planes[2][i] = level(high, span, fabsf(hue - 4) - 1);
    }
}

FOR_EACH_CPU
static void recolour_row(const uint8_t *source, uint8_t *target, Py_ssize_t width, Gains gains)
{
    Planes planes = {{0}};
    for (Py_ssize_t start = 0; start < width; start += BLOCK) {
        int count = width - start < BLOCK ? (int)(width - start) : BLOCK;
        const uint8_t *from = source + 3 * start;
        uint8_t *to = target + 3 * start;
        for (int i = 0; i < count; i++) {
            planes[0][i] = from[3 * i];
            planes[1][i] = from[3 * i + 1];
            planes[2][i] = from[3 * i + 2];
        }
        recolour_planes(planes, count, gains);
        for (int i = 0; i < count; i++) {
            to[3 * i] = planes[0][i];
            to[3 * i + 1] = planes[1][i];
            to[3 * i + 2] = planes[2][i];
        }
    }
}

static int is_image(const Py_buffer *view)
{
    return view->itemsize == 1 && view->ndim == 3 && view->shape[2] == 3 && view->strides[2] == 1 &&
           (view->strides[1] == 3 || view->shape[1] <= 1);
}

static PyObject *recolour(PyObject *module, PyObject *args)
{
    PyObject *source, *target;
    Py_buffer from, to;
    Gains gains;
    (void)module;
    if (!PyArg_ParseTuple(args, "OOfff", &source, &target, &gains.hue, &gains.saturation, &gains.value))
        return NULL;
    if (PyObject_GetBuffer(source, &from, PyBUF_STRIDED_RO))
        return NULL;
    if (PyObject_GetBuffer(target, &to, PyBUF_STRIDED)) {
        PyBuffer_Release(&from);
        return NULL;
    }
    int fit = is_image(&from) && is_image(&to) && from.shape[0] == to.shape[0] && from.shape[1] == to.shape[1];
    if (fit) {
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t y = 0; y < from.shape[0]; y++)
            recolour_row((const uint8_t *)from.buf + y * from.strides[0], (uint8_t *)to.buf + y * to.strides[0],
                         from.shape[1], gains);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&to);
    PyBuffer_Release(&from);
    if (!fit) {
        PyErr_SetString(PyExc_ValueError, "source and target must be images (H, W, 3) of bytes and of the same size");
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"recolour", recolour, METH_VARARGS, "Recolour an image (H, W, 3) into another array, or into itself."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_colour", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__colour(void) { return PyModuleDef_Init(&definition); }
