from babylm_train.evaluation.generate import main

if __name__ == "__main__":
    main()
